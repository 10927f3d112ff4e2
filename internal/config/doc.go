// Package config fills a struct of options from a YAML file, the environment
// and flags, each laid over the one before: default < file < environment <
// flag. It is strict: what it does not know it refuses, with the key's path
// and a suggestion, and it reports everything that is wrong, not the first
// thing only.
//
// It knows nothing of what the options mean: it reads the struct's tags.
//
//	koanf:"name"   the key; "-" keeps the field out of the configuration
//	unit:"bytes"   an integer that may be written as a size: 65536, 64KiB, 1MiB
//	secret:"true"  never quoted in an error; a file that sets it should be
//	               readable by its owner alone
//	secret:"url"   the same of an address, which holds one only where it has an '@'
//
// Nothing here is kept between calls: every function is safe from any
// goroutine.
package config
