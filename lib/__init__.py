"""tunegrid: did this fine-tune really work, and did it get worse? Asked as a test."""
