"""What a stage is going to take, before it starts: FLOPs, time on this device, memory, disk."""
