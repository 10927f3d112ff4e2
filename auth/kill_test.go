package auth

func rotateForever(dir string) {}
