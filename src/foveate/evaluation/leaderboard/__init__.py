"""Results that are committed and compared: what one holds, what is wrong with it, and the pages made of them all."""
