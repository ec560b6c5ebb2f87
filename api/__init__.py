"""What a Python program imports: classifiers of images around the methods of `trainers/`."""
