"""What the methods that cut parts out of a text have in common."""
