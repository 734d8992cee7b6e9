"""How fast networks are trained and used here, how much memory they take, and how near they come to the
device's peak.
"""
