"""The Conversations API: requests, how they are repeated, and what became of them."""
