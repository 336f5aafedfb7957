"""What is known before a device is used."""
