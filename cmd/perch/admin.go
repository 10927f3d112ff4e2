package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const (
	adminTimeout = 30 * time.Second
	adminAnswer  = 64 << 20 // bytes
)

// adminClient asks a running server on its admin port.
type adminClient struct {
	addr, key string
	http      http.Client
}

// admin is the client of the server that has this configuration.
func (c *configFlags) admin(cmd *cobra.Command) (*adminClient, error) {
	opts, err := c.load(cmd)
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(opts.Admin)
	if err != nil {
		return nil, fmt.Errorf("admin: %q must be host:port, such as 127.0.0.1:8001", opts.Admin)
	}
	// A server that listens on all addresses is asked on this machine.
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	a := &adminClient{addr: net.JoinHostPort(host, port), key: opts.API.Key, http: http.Client{Timeout: adminTimeout}}
	if a.key == "" {
		file := filepath.Join(opts.DataDir, "api_key")
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("no api.key (PERCH_API_KEY) is configured, and none is in data_dir: %w", err)
		}
		a.key = strings.TrimSpace(string(b))
	}
	return a, nil
}

// do makes a request about clients; nil body: none. It returns the result, or
// what the server says is wrong.
func (a *adminClient) do(ctx context.Context, method, path string, body any) (json.RawMessage, error) {
	if ctx == nil {
		ctx = context.Background()
	}
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+a.addr+"/api/clients"+path, in)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-API-Key", a.key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("the admin port %s does not answer: is the server running there? (admin, --admin): %w", a.addr, cause(err))
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, adminAnswer))
	if err != nil {
		return nil, fmt.Errorf("the admin port %s: %w", a.addr, err)
	}
	var answer struct {
		Result json.RawMessage `json:"result"`
		Error  *struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	switch err := json.Unmarshal(b, &answer); {
	case resp.StatusCode == http.StatusUnauthorized:
		return nil, errors.New("the server refuses the key: give its api.key (PERCH_API_KEY), or the data_dir that the key is in")
	case resp.StatusCode == http.StatusNoContent:
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("%s answers with %s, not as a perch does", a.addr, resp.Status)
	case answer.Error != nil:
		return nil, errors.New(answer.Error.Message)
	case resp.StatusCode >= 300:
		return nil, fmt.Errorf("%s answers with %s", a.addr, resp.Status)
	}
	return answer.Result, nil
}

// cause is an error without the request's address, which is said already.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
