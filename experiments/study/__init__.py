"""Many organisms by one manifest: trained, read, chosen on, judged, combined."""
