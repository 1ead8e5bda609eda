"""The grading page: candidates in memory, their pictures, the graders' entries, and the server that shows them."""
