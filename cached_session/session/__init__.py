"""What the SDK sees: sessions, and where their conversations are kept."""
