// Package protocol turns the Centrifuge client protocol into bytes and back:
// commands out of a WebSocket message, replies, pushes and whole publication
// frames into one. It knows nothing of sessions, topics or sockets, so that
// load generators can use it as well.
//
// A JSON message holds commands split by newlines, a Protobuf message holds
// each behind its length as a varint. An empty command is the pong, an empty
// reply the ping; both are told by their bytes.
//
// The generated messages are those of github.com/centrifugal/protocol; what
// its decoders return owns its memory: nothing points into the message it came
// from.
//
// All functions are safe from any goroutine.
package protocol
