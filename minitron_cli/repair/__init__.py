"""Closed-form repair of a pruned child: which rotations, least-squares fits and norm scales, and their statistics."""
