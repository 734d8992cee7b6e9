"""What several tests share: small data, fake results, processes, file systems and a browser."""
