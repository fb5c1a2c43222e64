"""What is each entry of the vocabulary, and can any text produce it?"""
