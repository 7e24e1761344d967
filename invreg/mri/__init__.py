"""What a scanner's raw data needs before it is an inverse problem."""
