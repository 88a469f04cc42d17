"""git, for tests that make a repository."""

import subprocess


def git(repo, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    answer = subprocess.run(["git", "-C", repo, *identity, *arguments], capture_output=True, text=True, check=True)
    return answer.stdout.strip()
