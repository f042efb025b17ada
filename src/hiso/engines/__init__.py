"""What moves messages between the server and the clients."""
