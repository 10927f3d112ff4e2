package auth

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"unicode/utf8"
)

// The claims are read by hand, for two reasons: encoding/json matches names
// without regard to case ("SUB" would be taken for "sub", RFC 7519 section 4
// says it must not), and it allocates where a connect storm needs nothing but a
// few slices of the payload.

var (
	errNotObject = errors.New("not a JSON object")
	errClaimType = errors.New("claim of a wrong type")
	errClaimDup  = errors.New("claim given twice")
)

// members walks the members of a JSON object. What it is given must be valid
// JSON (json.Valid): it looks for the ends of values, it does not check them.
type members struct {
	data []byte
	pos  int
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

func skipSpace(b []byte, i int) int {
	for i < len(b) && isSpace(b[i]) {
		i++
	}
	return i
}

// walkObject starts a walk; ok is false where data is not an object.
func walkObject(data []byte) (m members, ok bool) {
	i := skipSpace(data, 0)
	if i >= len(data) || data[i] != '{' {
		return m, false
	}
	return members{data: data, pos: i + 1}, true
}

// next returns the text of the next name, without its quotes, and of its
// value. Both alias the data.
func (m *members) next() (name, value []byte, ok bool) {
	b := m.data
	i := skipSpace(b, m.pos)
	if i < len(b) && b[i] == ',' {
		i = skipSpace(b, i+1)
	}
	if i >= len(b) || b[i] != '"' {
		return nil, nil, false
	}
	end := skipString(b, i)
	name = b[i+1 : end-1]
	i = skipSpace(b, end)
	if i >= len(b) || b[i] != ':' {
		return nil, nil, false
	}
	i = skipSpace(b, i+1)
	end = skipValue(b, i)
	value = b[i:end]
	m.pos = end
	if bytes.IndexByte(name, '\\') >= 0 {
		s, err := unquote(quoted(name))
		if err != nil {
			return nil, nil, false
		}
		name = []byte(s)
	}
	return name, value, true
}

// quoted gives name its quotes back: it is a slice from between them.
func quoted(name []byte) []byte {
	q := make([]byte, 0, len(name)+2)
	q = append(q, '"')
	q = append(q, name...)
	return append(q, '"')
}

// skipString returns the index behind the string that opens at b[i].
func skipString(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(b)
}

// skipValue returns the index behind the value that begins at b[i].
func skipValue(b []byte, i int) int {
	if i >= len(b) {
		return i
	}
	switch b[i] {
	case '"':
		return skipString(b, i)
	case '{', '[':
		for depth := 0; i < len(b); {
			switch b[i] {
			case '"':
				i = skipString(b, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
		return len(b)
	}
	for i < len(b) && b[i] != ',' && b[i] != '}' && b[i] != ']' && !isSpace(b[i]) {
		i++
	}
	return i
}

// unquote decodes the JSON string raw. The result is a copy.
func unquote(raw []byte) (string, error) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", errClaimType
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1]), nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", errClaimType
	}
	return s, nil
}

// equalsString reports whether the JSON string raw says want.
func equalsString(raw []byte, want string) bool {
	if len(raw) < 2 || raw[0] != '"' {
		return false
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1:len(raw)-1]) == want
	}
	s, err := unquote(raw)
	return err == nil && s == want
}

// stringList decodes a JSON array of strings; every element is a copy.
func stringList(raw []byte) ([]string, error) {
	if len(raw) == 0 || raw[0] != '[' {
		return nil, errClaimType
	}
	var out []string
	for i := skipSpace(raw, 1); i < len(raw) && raw[i] != ']'; i = skipSpace(raw, i) {
		if raw[i] == ',' {
			i++
			continue
		}
		end := skipValue(raw, i)
		s, err := unquote(raw[i:end])
		if err != nil {
			return nil, err
		}
		out = append(out, s)
		i = end
	}
	return out, nil
}

// maxDate is the largest time taken, in seconds: what a JSON number holds
// without loss (2^53).
const maxDate = 1 << 53

// numericDate decodes a NumericDate (RFC 7519 section 2), seconds with an
// optional fraction; the fraction is cut off.
func numericDate(raw []byte) (int64, error) {
	if len(raw) == 0 {
		return 0, errClaimType
	}
	if n := len(raw); n <= 15 {
		var v int64
		for i, c := range raw {
			if c < '0' || c > '9' {
				break
			}
			v = v*10 + int64(c-'0')
			if i == n-1 {
				return v, nil
			}
		}
	}
	if c := raw[0]; c != '-' && (c < '0' || c > '9') {
		return 0, errClaimType
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || math.Abs(f) > maxDate {
		return 0, errClaimType
	}
	return int64(math.Floor(f)), nil
}

// validJSON reports whether data is one JSON text in UTF-8.
func validJSON(data []byte) bool { return utf8.Valid(data) && json.Valid(data) }
