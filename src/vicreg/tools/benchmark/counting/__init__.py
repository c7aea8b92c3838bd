"""What a call costs, counted without a clock: operations, bytes and multiply-adds."""
