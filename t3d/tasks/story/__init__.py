"""The built-in task: endless word problems with integers, answered in prose of very many equally good wordings."""
