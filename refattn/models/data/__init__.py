"""The bundled text and the checkpoint that was trained on it."""
