"""What every other room stands on: errors, files, tables, progress, memory, processes."""
