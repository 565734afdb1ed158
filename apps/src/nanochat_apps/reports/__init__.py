"""What people read of a model: HTML pages and the chat page's card."""
