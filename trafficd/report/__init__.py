"""What is kept of a rollout while its answers are judged, so that afterwards everybody can see why.

`series` and `course` are pure: the fold of what the judge and the access log say into one record. `shelf` has the
files.
"""
