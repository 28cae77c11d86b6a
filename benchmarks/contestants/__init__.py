"""One small program for each contestant; see serve.py for what they answer."""
