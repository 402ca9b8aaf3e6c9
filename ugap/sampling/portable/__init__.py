"""What an exported folder copies as it is: these modules need torch, NumPy and transformers alone."""
