"""The arithmetic of batch norm, in interchangeable forms behind one signature."""
