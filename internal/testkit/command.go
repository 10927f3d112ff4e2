package testkit

import (
	"encoding/json"
	"fmt"
	"strings"
)

// ConnectCommand is the connect command of the JSON client protocol, with id 1;
// an empty token is left out.
func ConnectCommand(token string) string {
	if token == "" {
		return `{"id":1,"connect":{}}`
	}
	return `{"id":1,"connect":{"token":` + quote(token) + `}}`
}

// SubscribeCommand subscribes topic.
func SubscribeCommand(id int, topic string) string {
	return fmt.Sprintf(`{"id":%d,"subscribe":{"channel":%s}}`, id, quote(topic))
}

// PublishCommand publishes data, which is JSON.
func PublishCommand(id int, topic, data string) string {
	return fmt.Sprintf(`{"id":%d,"publish":{"channel":%s,"data":%s}}`, id, quote(topic), data)
}

// Commands joins commands to the payload of one frame.
func Commands(commands ...string) []byte { return []byte(strings.Join(commands, "\n")) }

// Blob is a JSON string of n bytes, quotes included.
func Blob(n int) string { return `"` + strings.Repeat("x", max(0, n-2)) + `"` }

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings are always marshalled
	}
	return string(b)
}
