"""How the embedded checkpoint was pretrained."""
