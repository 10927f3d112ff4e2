package backend

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
)

// Peer is whom a call is about.
type Peer struct {
	Client string
	// Transport is websocket, uni_websocket or uni_sse, Protocol json or protobuf.
	Transport string
	Protocol  string
	User      string
	Meta      []byte // JSON
	// Headers are those of the opening handshake that go with the call: lines of
	// "Name: value", each with CRLF at its end.
	Headers string
}

// request is what all methods are asked with. The fields of the others are empty
// and left out.
type request struct {
	Client    string `json:"client"`
	Transport string `json:"transport"`
	Protocol  string `json:"protocol"`
	Encoding  string `json:"encoding"`

	User    *string         `json:"user,omitempty"`
	Channel string          `json:"channel,omitempty"`
	Method  *string         `json:"method,omitempty"`
	Meta    json.RawMessage `json:"meta,omitempty"`
	Data    json.RawMessage `json:"data,omitempty"`
	B64Data string          `json:"b64data,omitempty"`

	Name     string   `json:"name,omitempty"`
	Version  string   `json:"version,omitempty"`
	Channels []string `json:"channels,omitempty"`
}

// The values of encoding.
const (
	encodingJSON   = "json"
	encodingBinary = "binary"
)

// about begins a request.
func about(p *Peer) request {
	r := request{Client: p.Client, Transport: p.Transport, Protocol: p.Protocol, Encoding: encodingJSON, Meta: p.Meta}
	if !json.Valid(r.Meta) {
		r.Meta = nil
	}
	return r
}

// of is about with the user, who is known by then.
func of(p *Peer) request {
	r := about(p)
	r.User = &p.User
	return r
}

// carry puts a payload in: as it is where it is JSON, else in base64, as
// everything where binary is set.
func (r *request) carry(data []byte, binary bool) {
	switch {
	case binary:
		r.Encoding, r.B64Data = encodingBinary, base64.StdEncoding.EncodeToString(data)
	case len(data) == 0:
	case json.Valid(data):
		r.Data = data
	default:
		r.Encoding, r.B64Data = encodingBinary, base64.StdEncoding.EncodeToString(data)
	}
}

// encode writes the body. What a client has sent keeps its letters: no escapes
// for HTML.
func (r *request) encode() ([]byte, error) {
	var b bytes.Buffer
	b.Grow(256 + len(r.Data) + len(r.B64Data) + len(r.Meta))
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		return nil, fmt.Errorf("backend: encode request: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), nil
}

// ConnectRequest is what a client says of itself.
type ConnectRequest struct {
	Data          []byte
	Name, Version string
	// Channels are the topics that the client knows of an earlier connection.
	Channels []string
}

// SubscribeRequest asks for one subscription.
type SubscribeRequest struct {
	Channel string
	Data    []byte
}

// PublishRequest asks whether data may go to a topic.
type PublishRequest struct {
	Channel string
	Data    []byte
}

// RPCRequest is a call of the client's.
type RPCRequest struct {
	Method string
	Data   []byte
}

func (c *Client) connectRequest(p *Peer, q *ConnectRequest) request {
	r := about(p)
	r.carry(q.Data, c.opts.Binary)
	r.Name, r.Version, r.Channels = q.Name, q.Version, slices.Sorted(slices.Values(q.Channels))
	return r
}

func (c *Client) topicRequest(p *Peer, name string) request {
	r := of(p)
	r.Channel = name
	if c.opts.Binary {
		r.Encoding = encodingBinary
	}
	return r
}

func (c *Client) payloadRequest(p *Peer, name string, data []byte) request {
	r := c.topicRequest(p, name)
	r.carry(data, c.opts.Binary)
	return r
}

func (c *Client) rpcRequest(p *Peer, q *RPCRequest) request {
	r := of(p)
	r.Method = &q.Method
	r.carry(q.Data, c.opts.Binary)
	return r
}
