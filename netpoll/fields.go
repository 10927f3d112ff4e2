package netpoll

import "strings"

// eachField calls f with each header of a head that parseHead has taken.
func eachField(head string, f func(name, value string)) {
	for strings.HasPrefix(head, "\r\n") {
		head = head[2:]
	}
	_, head, _ = strings.Cut(head, "\r\n") // the request line
	for line := range strings.SplitSeq(head, "\r\n") {
		if line == "" {
			return
		}
		name, value, _ := strings.Cut(line, ":")
		f(name, strings.Trim(value, " \t"))
	}
}
