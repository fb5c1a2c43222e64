"""What does a head look at, token by token, in one sequence?"""
