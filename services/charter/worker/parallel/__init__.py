"""Many ranks as one worker."""
