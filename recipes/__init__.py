"""SpeechBrain training recipes around the codec."""
