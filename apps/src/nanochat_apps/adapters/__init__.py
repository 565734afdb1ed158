"""Where libraries meet: one library's model, engine or tasks, in the shape that another asks for."""
