package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"perch"
)

// addresses is what greet needs of a *perch.Server.
type addresses interface {
	PublicAddr() string
	AdminAddr() string
}

const (
	// greetTTL is how long the token lives that is shown at start.
	greetTTL = time.Hour
	// greetTopic is the topic of the lines to try.
	greetTopic = "news"
	// apiKeyFile is where the server keeps the API key that it made.
	apiKeyFile = "api_key"
)

// greet prints what can be tried now, and where the files are. A token is
// shown only to who tries Perch out, on loopback and without a file (or in dev
// mode): elsewhere standard output is a log that others read, and the token
// would open their door for an hour.
func greet(w io.Writer, opts perch.Options, srv addresses, file string) {
	public, admin := reach(srv.PublicAddr()), reach(srv.AdminAddr())
	fmt.Fprintf(w, "Perch serves http://%s, and its backends on http://%s.\n\n", public, admin)
	show := func(title, text string) { fmt.Fprintf(w, "%s\n  %s\n\n", title, text) }

	// Where clients may subscribe, the line for the console shows how; else the
	// token carries the subscription.
	subscribe := opts.Insecure || opts.Topics.Default.AllowSubscribeForClient
	var channels []string
	command := "perch token --sub alice"
	if !subscribe {
		channels = []string{greetTopic}
		command += " --channels " + greetTopic
	}
	command += configArgs(opts, file)

	token := "TOKEN"
	switch {
	case opts.Insecure:
		token = ""
		show("Insecure mode:", "no token is needed, and every topic operation is allowed.")
	case loopback(srv.PublicAddr()) && (file == "" || opts.Dev):
		issued, err := perch.IssueToken(opts, perch.TokenRequest{Subject: "alice", TTL: greetTTL, Channels: channels})
		if err != nil {
			// Only keys that verify are configured, perhaps: the server runs all the
			// same.
			show("No token to show:", strings.TrimPrefix(err.Error(), "perch: "))
			break
		}
		token = issued
		show("A token for alice, good for an hour (more: "+command+"):", token)
	default:
		show("A token for alice:", command)
	}
	if opts.Demo {
		show("The demo page:", "http://"+public+"/demo")
	}
	show("In a browser's console, on http://"+public+"/ (its own origin is always allowed):",
		consoleLine("ws://"+public+opts.WebSocket.Path, token, subscribe))
	if opts.Dev && usesDevClient(opts) {
		show("A token over HTTP, with dev mode's example client:", fmt.Sprintf(
			"curl -u %s:%s -d grant_type=client_credentials -d sub=alice http://%s/v1/token",
			perch.DevClient, perch.DevSecret, public))
	}
	show("A push, as a backend sends it:", fmt.Sprintf(
		`curl -H "X-API-Key: %s" -d '{"channel":"%s","data":{"text":"hello"}}' http://%s/api/publish`,
		apiKey(opts), greetTopic, admin))
	fmt.Fprintln(w, "Files: "+files(opts, file))
}

// consoleLine connects with nothing but the browser's WebSocket: the commands
// of the JSON protocol, one a line, and a pong ({}) for each ping ({}).
func consoleLine(address, token string, subscribe bool) string {
	connect := map[string]any{"id": 1, "connect": map[string]string{}}
	if token != "" {
		connect["connect"] = map[string]string{"token": token}
	}
	commands := mustJSON(connect)
	if subscribe {
		commands += `\n` + mustJSON(map[string]any{"id": 2, "subscribe": map[string]string{"channel": greetTopic}})
	}
	return fmt.Sprintf(`ws = new WebSocket(%q); ws.onopen = () => ws.send('%s'); `+
		`ws.onmessage = e => e.data == "{}" ? ws.send("{}") : console.log(e.data)`, address, commands)
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // maps of texts and numbers always marshal
	}
	return string(b)
}

// reach is an address that a client on this machine can use: a server on every
// address is reached by loopback.
func reach(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// usesDevClient tells whether the example client has the example secret, and
// not one of the configuration.
func usesDevClient(opts perch.Options) bool {
	dev := perch.Options{}.WithDev().Auth.Clients[0]
	for _, c := range opts.Auth.Clients {
		if c.ID == dev.ID {
			return c.SecretHash == dev.SecretHash
		}
	}
	return false
}

// configArgs makes another command use the same keys.
func configArgs(opts perch.Options, file string) string {
	args := ""
	if file != "" {
		args += " --config " + quote(file)
	}
	if opts.DataDir != perch.DefaultOptions().DataDir {
		args += " --data-dir " + quote(opts.DataDir)
	}
	return args
}

// apiKey is how the shell gets at the key: the key itself is never printed.
func apiKey(opts perch.Options) string {
	if opts.API.Key != "" {
		return "$PERCH_API_KEY"
	}
	return "$(cat " + quote(filepath.Join(opts.DataDir, apiKeyFile)) + ")"
}

func files(opts perch.Options, file string) string {
	dir := opts.DataDir
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	out := dir + " (keys, revocations"
	if opts.API.Key == "" {
		out += "; the API key is in " + filepath.Join(dir, apiKeyFile)
	}
	out += ")"
	if file != "" {
		out += ", " + file
	}
	return out
}

// quote makes s one word of a shell.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@%", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
