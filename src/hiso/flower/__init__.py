"""Deployment on Flower: a server application, a relay, and a resident worker behind it."""
