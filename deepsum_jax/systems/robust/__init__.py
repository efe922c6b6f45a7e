"""What robust back-projection is made of: agreement, consensus, registration, the reference."""
