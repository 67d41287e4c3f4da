"""What each promise is and how it is tried; table.py names them all."""
