"""What the library does under every kind of fault, one fault at a time."""
