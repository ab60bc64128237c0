"""What a checkpoint is: named tensors over named axes. Pure: knows no file."""
