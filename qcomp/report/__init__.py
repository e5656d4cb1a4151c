"""What a person reads: tables, comparisons, measurements."""
