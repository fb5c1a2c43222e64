"""What does a head attend to, token by token, in one sequence?"""
