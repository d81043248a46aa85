"""What is asked: yes/no questions, their answers, and the sets and formats they come in."""
