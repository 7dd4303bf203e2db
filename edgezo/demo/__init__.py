"""The demo: a small language model learns an assistant's intents on this machine."""
