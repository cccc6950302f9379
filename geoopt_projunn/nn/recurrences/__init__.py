"""How recurrent layers run: all time steps forward, and backward."""
