"""What Random Token Masking and L3Masking share: two losses, and the weights of both."""
