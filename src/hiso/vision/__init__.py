"""Small networks on small images, where a comparison takes minutes in place of days."""
