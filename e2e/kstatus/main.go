// Command kstatus says of each object that it reads (JSON, one after the other) how Flux, Helm and
// kpt see it: a line with Current, InProgress, Failed, Terminating, NotFound or Unknown, and a message.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "kstatus:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	for decoder := json.NewDecoder(in); ; {
		object := map[string]any{}
		if err := decoder.Decode(&object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		result, err := status.Compute(&unstructured.Unstructured{Object: normalized(object).(map[string]any)})
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s %s\n", result.Status, result.Message)
	}
}

// normalized turns whole numbers into int64, as the API machinery has them; encoding/json knows float64 alone.
func normalized(value any) any {
	switch value := value.(type) {
	case map[string]any:
		for key, inner := range value {
			value[key] = normalized(inner)
		}
	case []any:
		for i, inner := range value {
			value[i] = normalized(inner)
		}
	case float64:
		if whole := int64(value); float64(whole) == value {
			return whole
		}
	}
	return value
}
