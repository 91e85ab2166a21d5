"""The programs are run, not collected: importing their frameworks takes long, and warns."""

collect_ignore = ["programs"]
